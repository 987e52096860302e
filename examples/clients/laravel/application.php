<?php

/**
 * A Laravel application, as small as one can be, with the parts of examples/laravel-sail in it.
 * A real product has all this already. PRODUCT_DATABASE is an SQLite file.
 */

use App\Providers\LearningGatewayProvider;
use Illuminate\Config\Repository;
use Illuminate\Contracts\Debug\ExceptionHandler;
use Illuminate\Foundation\Application;
use Illuminate\Foundation\Exceptions\Handler;
use Illuminate\Support\Facades\Facade;
use Illuminate\Support\Facades\Route;

require_once 'Illuminate/autoload.php';
require_once 'GuzzleHttp/autoload.php';

const SAIL = __DIR__ . '/../../laravel-sail';

spl_autoload_register(static function (string $class): void {
    foreach ([SAIL . '/app', __DIR__ . '/app'] as $folder) {
        $file = $folder . '/' . str_replace('\\', '/', substr($class, strlen('App\\'))) . '.php';
        if (str_starts_with($class, 'App\\') && is_file($file)) {
            require $file;
        }
    }
});

$app = new Application(sys_get_temp_dir());
$app->instance('config', new Repository([
    'app' => ['locale' => 'en', 'fallback_locale' => 'en', 'env' => 'production', 'debug' => false],
    'cache' => ['default' => 'array', 'stores' => ['array' => ['driver' => 'array']]],
    'database' => [
        'default' => 'sqlite',
        'connections' => ['sqlite' => ['driver' => 'sqlite', 'database' => getenv('PRODUCT_DATABASE')]],
    ],
    'learning_gateway' => require SAIL . '/config/learning_gateway.php',
    'logging' => [
        'default' => 'stderr',
        'channels' => ['stderr' => ['driver' => 'errorlog']],
    ],
    'queue' => [
        'default' => 'database',
        'connections' => [
            'database' => ['driver' => 'database', 'table' => 'jobs', 'queue' => 'default', 'retry_after' => 90],
        ],
        'failed' => ['driver' => null],
    ],
    'view' => ['paths' => [], 'compiled' => sys_get_temp_dir()],
]));
$app->singleton(ExceptionHandler::class, Handler::class);
Facade::setFacadeApplication($app);
foreach ([
    Illuminate\Filesystem\FilesystemServiceProvider::class,
    Illuminate\Foundation\Providers\FoundationServiceProvider::class,
    Illuminate\Bus\BusServiceProvider::class,
    Illuminate\Cache\CacheServiceProvider::class,
    Illuminate\Database\DatabaseServiceProvider::class,
    Illuminate\Queue\QueueServiceProvider::class,
    Illuminate\Translation\TranslationServiceProvider::class,
    Illuminate\Validation\ValidationServiceProvider::class,
    Illuminate\View\ViewServiceProvider::class,
    LearningGatewayProvider::class,
] as $provider) {
    $app->register($provider);
}
$app->boot();
Route::prefix('api')->group(SAIL . '/routes/api.php');

return $app;
